-- Let a new connection control a session.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  gateway of the new connection
-- ARGV[3]  resume_hash, hex
-- ARGV[4]  next_seq, the first chunk that it wants
-- Derived  queue:<model> (zset): a queued session is in the line again; subject:<name> and controlled:<name> (sets)
-- Returns  the new controller_epoch
-- Errors   NO_SUCH_SESSION (also for a wrong hash), SESSION_CLOSED, BEYOND
-- Events   controller_changed

local s = read_hash(KEYS[1])
if not s or s.resume_hash ~= ARGV[3] then
  return fail('NO_SUCH_SESSION', 'no such session, or the resume token does not fit')
end
local bad = check_controller(s, '0')
if bad then
  return bad
end
-- The record may lag behind what was sent; within the replay window the owner judges.
if tonumber(ARGV[4]) > tonumber(s.next_seq) + REPLAY_CHUNKS then
  return fail('BEYOND', 'next_seq ' .. ARGV[4] .. ' is beyond what was generated')
end
s.controller_epoch = redis.call('HINCRBY', KEYS[1], 'controller_epoch', 1)
come_back(ARGV[1], s, ARGV[2])
return s.controller_epoch

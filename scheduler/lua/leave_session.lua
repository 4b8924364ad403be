-- The controlling connection is gone. No effect on a session that is closed or has a newer connection.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  controller_epoch of the connection
-- Derived  queue:<model> (zset): a queued session leaves the line, its order is kept; subject:<name> and
--          controlled:<name> (sets)
-- Returns  1 if it was the controlling one, else 0
-- Events   session_left

local s = read_hash(KEYS[1])
if check_controller(s, ARGV[2]) or s.left_ms ~= '' then
  return 0
end
redis.call('HSET', KEYS[1], 'gateway', '', 'left_ms', now_ms())
count_for_subject(ARGV[1], s.subject or '', false)
if s.phase == 'queued' then
  redis.call('ZREM', key('queue', s.model), ARGV[1])
end
emit({type = 'session_left', session = ARGV[1]})
return 1

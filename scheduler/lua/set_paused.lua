-- Record pause or resume. While queued it decides whether the session starts active.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  controller_epoch of the connection
-- ARGV[3]  paused, 0 or 1
-- ARGV[4…] ids of the messages that this is, if they have one
-- Derived  session:<id>:ids (hash), session:<id>:id_order (list)
-- Returns  1
-- Errors   NO_SUCH_SESSION, SESSION_CLOSED, STALE_CONTROLLER
-- Events   none: of a placed session the owner publishes `active` itself

local s = read_hash(KEYS[1])
local bad = check_controller(s, ARGV[2])
if bad then
  return bad
end
hold_control(ARGV[1], s, ARGV[2])
redis.call('HSET', KEYS[1], 'paused', ARGV[3])
if s.phase == 'queued' then
  redis.call('HSET', KEYS[1], 'active', 1 - ARGV[3])
end
for i = 4, #ARGV do
  if redis.call('HEXISTS', key('ids', ARGV[1]), ARGV[i]) == 0 then
    remember(ARGV[1], ARGV[i], PAUSE_ANSWER)
  end
end
return 1

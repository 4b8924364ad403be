-- Take a placed session from its engine; it waits at the front of the queue.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  expect_epoch: the epoch that the plan saw
-- ARGV[3]  term of the leader
-- ARGV[4]  reason
-- Derived  queue:<model> (zset), serial (string), engine:<id> (hash) and its placed set and commands
-- Returns  the new epoch
-- Errors   STALE_TERM, REFUSED
-- Events   session_queued; command: release

local session = ARGV[1]
local bad = check_term(ARGV[3])
if bad then
  return bad
end
local s = read_hash(KEYS[1])
if not s or s.epoch ~= ARGV[2] or not SESSION_MOVES[s.phase]['requeue'] then
  return fail('REFUSED', 'the session is not placed at epoch ' .. ARGV[2])
end
bad = check_not_in_flight(s)
if bad then
  return bad
end
command(s.engine, {type = 'release', session = session, epoch = s.epoch + 1})
redis.call('HSET', KEYS[1], 'strikes', 0)
requeue(session, s, ARGV[4])
return s.epoch + 1

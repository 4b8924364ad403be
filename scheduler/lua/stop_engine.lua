-- Tell a drained, empty engine to exit.
--
-- KEYS[1]  engine:<id> (hash)
-- ARGV[1]  engine
-- ARGV[2]  term of the leader
-- Derived  engine:<id>:placed (set), engine:<id>:commands (stream)
-- Returns  1
-- Errors   STALE_TERM, REFUSED
-- Events   none; command: stop_engine. Its exit is the event.

local bad = check_term(ARGV[2])
if bad then
  return bad
end
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'draining' or redis.call('SCARD', key('placed', ARGV[1])) > 0 then
  return fail('REFUSED', ARGV[1] .. ' is not a drained, empty engine')
end
command(ARGV[1], {type = 'stop_engine'})
return 1

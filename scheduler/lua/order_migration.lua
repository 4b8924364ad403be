-- An administrator wants a session on another engine: note it and wake the leader.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  engine
-- ARGV[3]  ttl_ms: the order is forgotten after so long, ms
-- Derived  engine:<id> (hash) of both engines
-- Returns  1
-- Errors   NO_SUCH_SESSION, SESSION_CLOSED, NO_SUCH_ENGINE, REFUSED
-- Events   session_changed

local session, engine = ARGV[1], ARGV[2]
local s = read_hash(KEYS[1])
local bad = check_controller(s, '0')
if bad then
  return bad
end
local e = read_hash(key('engine', engine))
if not e or e.state == 'gone' then
  return fail('NO_SUCH_ENGINE', 'no engine ' .. engine)
end
if s.phase ~= 'placed' then
  return fail('REFUSED', 'the session waits for a place: there is nothing to move')
end
bad = check_not_in_flight(s)
if bad then
  return bad
end
if s.engine == engine then
  return fail('REFUSED', 'the session is there already')
end
if e.state ~= 'ready' then
  return fail('REFUSED', engine .. ' is ' .. e.state .. ', not ready')
end
if e.model_name ~= s.model then
  return fail('REFUSED', engine .. ' has model ' .. e.model_name .. ', the session needs ' .. s.model)
end
local from = read_hash(key('engine', s.engine))
if from and not have_equal_models(from, e) then
  return fail('REFUSED', engine .. ' has other weights: the picture would be lost')
end
if s.active == '1' and count_residents(engine) >= tonumber(e.capacity) then
  return fail('REFUSED', engine .. ' is full')
end
redis.call('HSET', KEYS[1], 'failed_moves', 0, 'move_to', engine, 'move_until_ms', string.format('%.0f', now_ms() + ARGV[3]))
emit({type = 'session_changed', session = session, active = s.active == '1'})
return 1

-- The leader gives a placed session a slot of its engine again.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  expect_epoch: the epoch that the plan saw
-- ARGV[3]  term of the leader
-- Derived  engine:<id> (hash), engine:<id>:placed and :away (sets), engine:<id>:commands (stream)
-- Returns  1
-- Errors   STALE_TERM, REFUSED
-- Events   session_changed; command: activate

local session = ARGV[1]
local bad = check_term(ARGV[3])
if bad then
  return bad
end
local s = read_hash(KEYS[1])
if not s or s.phase ~= 'placed' or s.epoch ~= ARGV[2] then
  return fail('REFUSED', 'the session is not placed at epoch ' .. ARGV[2])
end
bad = check_not_in_flight(s)
if bad then
  return bad
end
local is_away = redis.call('SISMEMBER', key('away', s.engine), session) == 1
if not is_away then
  return fail('REFUSED', 'the session has a slot')
end
if count_residents(s.engine) >= tonumber(redis.call('HGET', key('engine', s.engine), 'capacity') or 0) then
  return fail('REFUSED', s.engine .. ' is full')
end
set_residence(session, s, 'resident')
command(s.engine, {type = 'activate', session = session, epoch = tonumber(s.epoch)})
return 1

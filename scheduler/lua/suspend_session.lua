-- The leader wants the slot of a session that nobody watches. Its engine takes it out, or keeps it if somebody
-- has come back meanwhile; until then it holds its slot.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  expect_epoch: the epoch that the plan saw
-- ARGV[3]  term of the leader
-- Derived  engine:<id>:away (set), engine:<id>:commands (stream)
-- Returns  1
-- Errors   STALE_TERM, REFUSED
-- Events   session_changed; command: suspend

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
if s.residence ~= 'resident' then
  return fail('REFUSED', 'the session is not resident')
end
set_residence(session, s, 'leaving')
command(s.engine, {type = 'suspend', session = session, epoch = tonumber(s.epoch)})
return 1

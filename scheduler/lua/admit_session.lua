-- The owner asks for a slot for a session whose state is elsewhere, because it is active. Idempotent.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  engine
-- ARGV[3]  epoch
-- Derived  engine:<id> (hash), engine:<id>:placed and :away (sets)
-- Returns  1: it is resident from now on; 0: every slot is taken, or it is being migrated
-- Errors   STALE_EPOCH
-- Events   session_changed when that is new, or that it is active

local session, engine = ARGV[1], ARGV[2]
local s = read_hash(KEYS[1])
local bad = check_owner(s, engine, ARGV[3])
if bad then
  return bad
end
local is_away = redis.call('SISMEMBER', key('away', engine), session) == 1
if is_away and s.flight_id then
  return 0
end
if is_away and count_residents(engine) >= tonumber(redis.call('HGET', key('engine', engine), 'capacity') or 0) then
  return 0
end
-- Said here as well: an idle one that is resident would be the first to lose its slot.
meter(session, s)
local is_new = s.active ~= '1'
s.active = '1'
redis.call('HSET', KEYS[1], 'active', 1, 'active_ms', now_ms())
local before = s.residence
set_residence(session, s, 'resident')
if is_new and before == 'resident' then
  emit({type = 'session_changed', session = session, active = true})
end
return 1

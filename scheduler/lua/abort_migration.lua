-- Call a migration off: by its source, or by the leader once its time is over. Idempotent.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  migration_id; of the leader '': any whose deadline has passed
-- ARGV[3]  engine that owns the session, '' when the leader does it
-- ARGV[4]  epoch of that owner; of the leader the term
-- Derived  engine:<id>:arriving (hash), engine:<id>:commands (stream)
-- Returns  1 called off now, 0 it was over before
-- Errors   STALE_EPOCH, STALE_TERM
-- Events   session_changed; command: cancel_migration to the target, by the leader also to the source

local session, id, engine = ARGV[1], ARGV[2], ARGV[3]
local s = read_hash(KEYS[1])
local bad
if engine == '' then
  bad = check_term(ARGV[4])
else
  bad = check_owner(s, engine, ARGV[4])
end
if bad then
  return bad
end
if not s or not s.flight_id then
  return 0
end
if engine ~= '' and s.flight_id ~= id then
  return 0
end
if engine == '' then
  if tonumber(s.flight_deadline_ms) > now_ms() then
    return 0
  end
  command(s.engine, {type = 'cancel_migration', session = session, epoch = tonumber(s.epoch),
    migration_id = s.flight_id})
end
call_off(session, s)
redis.call('HINCRBY', KEYS[1], 'failed_moves', 1)
redis.call('HSET', KEYS[1], 'moved_ms', now_ms())
emit({type = 'session_changed', session = session, active = s.active == '1'})
return 1

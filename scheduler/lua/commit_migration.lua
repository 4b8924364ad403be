-- The owner gives a session to the engine that has verified its state. Idempotent by migration_id.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  engine, the source
-- ARGV[3]  epoch of the source
-- ARGV[4]  migration_id
-- ARGV[5]  residence at the target
-- ARGV[6]  engine_ms: compute time of what the source made under its epoch, ms
-- ARGV[7]  media_bytes made under that epoch
-- Derived  engine:<id> (hash), its placed, away and arriving, engine:<id>:commands (stream)
-- Returns  the new epoch, also of a repeat
-- Errors   STALE_EPOCH; REFUSED: it was called off, the source goes on
-- Events   session_placed, session_opened; command: open to the target

local session, engine, id = ARGV[1], ARGV[2], ARGV[4]
local s = read_hash(KEYS[1])
if s and s.landed then
  local landed_id, landed_epoch = string.match(s.landed, '^(%S+) (%d+)$')
  if landed_id == id then
    return tonumber(landed_epoch)
  end
end
local bad = check_owner(s, engine, ARGV[3])
if bad then
  return bad
end
if s.flight_id ~= id then
  return fail('REFUSED', 'the migration was called off')
end
local target, epoch = s.flight_to, s.epoch + 1
if redis.call('HGET', key('engine', target), 'state') ~= 'ready' then
  return fail('REFUSED', target .. ' is not ready')
end
count_made(session, s, ARGV[6], ARGV[7])
detach(session, s)
land(session, s)
redis.call('SADD', key('placed', target), session)
if ARGV[5] == 'offloaded' then
  redis.call('SADD', key('away', target), session)
end
count_placed(target)
move_session(session, s, 'place', {'epoch', epoch, 'engine', target, 'opened', 1, 'reason', '', 'queue_order', 0,
  'residence', ARGV[5], 'landed', id .. ' ' .. epoch, 'failed_moves', 0, 'move_to', '', 'moved_ms', now_ms(),
  'placed_ms', now_ms(), 'strikes', 0})
command(target, {type = 'open', session = session, epoch = epoch})
emit({type = 'session_placed', session = session, engine = target, epoch = epoch})
emit({type = 'session_opened', session = session, engine = target, epoch = epoch})
return epoch

-- Give a session to an engine: a queued one, or a placed one that moves. An idle one needs no slot there: it
-- is placed as stored.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  engine
-- ARGV[3]  expect_epoch: the epoch that the plan saw
-- ARGV[4]  term of the leader
-- Derived  engine:<id> (hash), engine:<id>:placed and :away (sets), engine:<id>:commands (stream) of both engines,
--          queue:<model> (zset)
-- Returns  the new epoch
-- Errors   STALE_TERM, REFUSED
-- Events   session_placed; commands: open to the engine, release to the one before

local session, engine = ARGV[1], ARGV[2]
local bad = check_term(ARGV[4])
if bad then
  return bad
end
local s = read_hash(KEYS[1])
if not s or s.epoch ~= ARGV[3] or not SESSION_MOVES[s.phase]['place'] then
  return fail('REFUSED', 'the session is closed or has another epoch than ' .. ARGV[3])
end
bad = check_not_in_flight(s)
if bad then
  return bad
end
local e = read_hash(key('engine', engine))
if not e or e.state ~= 'ready' then
  return fail('REFUSED', engine .. ' is not ready')
end
if s.engine == engine then
  return fail('REFUSED', 'the session is there already')
end
if e.model_name ~= s.model then
  return fail('REFUSED', engine .. ' has model ' .. e.model_name .. ', the session needs ' .. s.model)
end
local needs_slot = s.active == '1'
if needs_slot and count_residents(engine) >= tonumber(e.capacity) then
  return fail('REFUSED', engine .. ' is full')
end

local before, epoch = s.engine, s.epoch + 1
detach(session, s)
redis.call('ZREM', key('queue', s.model), session)
redis.call('SADD', key('placed', engine), session)
if not needs_slot then
  redis.call('SADD', key('away', engine), session)
end
count_placed(engine)
move_session(session, s, 'place', {'epoch', epoch, 'engine', engine, 'opened', 0, 'reason', '', 'queue_order', 0,
  'residence', needs_slot and 'resident' or 'stored', 'failed_moves', 0, 'move_to', '', 'placed_ms', now_ms()})
if before ~= '' then
  redis.call('HSET', KEYS[1], 'moved_ms', now_ms(), 'strikes', 0)
  command(before, {type = 'release', session = session, epoch = epoch, engine = engine})
end
command(engine, {type = 'open', session = session, epoch = epoch})
emit({type = 'session_placed', session = session, engine = engine, epoch = epoch})
return epoch

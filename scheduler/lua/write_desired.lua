-- Say which engines should exist.
--
-- KEYS[1]  desired (hash)
-- ARGV[1]  term of the leader
-- ARGV[2]  JSON list of DesiredEngine
-- ARGV[3…] engine id, model name; repeated, the same engines
-- Derived  engine:<id> (hash), engines (zset)
-- Returns  1
-- Errors   STALE_TERM; REFUSED: an engine that would be dropped takes sessions by now
-- Events   desired_changed; engine_changed for new and for dropped starting engines

local bad = check_term(ARGV[1])
if bad then
  return bad
end
local wanted = {}
for i = 3, #ARGV, 2 do
  wanted[ARGV[i]] = true
end
-- A ready engine is drained before it is dropped; one that still starts has nothing to lose. The plan may have seen
-- that one: provisioners would end it, with whoever is placed there next.
local dropped = {}
for _, engine in ipairs(redis.call('ZRANGE', key('engines'), 0, -1)) do
  local state = not wanted[engine] and redis.call('HGET', key('engine', engine), 'state')
  if state == 'ready' then
    return fail('REFUSED', engine .. ' is ready: it must be drained before it is dropped')
  end
  if state == 'starting' then
    dropped[#dropped + 1] = engine
  end
end

local now = now_ms()
for i = 3, #ARGV, 2 do
  local engine = ARGV[i]
  if redis.call('EXISTS', key('engine', engine)) == 0 then
    redis.call('HSET', key('engine', engine), 'state', 'starting', 'url', '', 'model_name', ARGV[i + 1],
      'model', '', 'capacity', 0, 'sessions', 0, 'load', 0, 'chunk_ms', 0, 'started_ms', now,
      'heartbeat_ms', now, 'phase', 'wanted', 'deadline_ms', '', 'drain_ordered', 0)
    redis.call('ZADD', key('engines'), now, engine)
    emit({type = 'engine_changed', engine = engine, state = 'starting', reason = 'wanted'})
  end
end
for _, engine in ipairs(dropped) do
  retire(engine, read_hash(key('engine', engine)), 'not wanted any more')
end
redis.call('HSET', KEYS[1], 'term', ARGV[1], 'engines', ARGV[2])
emit({type = 'desired_changed', term = tonumber(ARGV[1])})
return 1

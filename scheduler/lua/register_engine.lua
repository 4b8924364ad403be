-- A started engine announces its link and model. Counts as a heartbeat.
--
-- KEYS[1]  engine:<id> (hash)
-- ARGV[1]  engine
-- ARGV[2]  url of its link
-- ARGV[3]  name of its model
-- ARGV[4]  JSON ModelInfo
-- ARGV[5]  capacity, sessions
-- ARGV[6]  transfer, host:port where other engines meet it; '' if it can't migrate sessions
-- Derived  engines (zset), models (hash), engine:<id>:placed (set)
-- Returns  1
-- Errors   ENGINE_GONE
-- Events   engine_changed

local engine = ARGV[1]
local e = read_hash(KEYS[1])
local now = now_ms()
if e and not ENGINE_MOVES[e.state]['register'] then
  return fail('ENGINE_GONE', engine .. ' was declared gone and must exit')
end
if not e then
  -- Started by hand, or Redis lost its data: the leader counts it in or drains it.
  e = {state = 'starting'}
  redis.call('HSET', KEYS[1], 'state', 'starting', 'started_ms', now, 'drain_ordered', 0)
end
move_engine(engine, e, 'register')
redis.call('HSET', KEYS[1], 'url', ARGV[2], 'model_name', ARGV[3], 'model', ARGV[4], 'capacity', ARGV[5],
  'transfer', ARGV[6], 'load', 0, 'chunk_ms', 0, 'heartbeat_ms', now, 'phase', 'ready', 'deadline_ms', '')
count_placed(engine)
redis.call('ZADD', key('engines'), now, engine)
redis.call('HSET', key('models'), ARGV[3], ARGV[4])
emit({type = 'engine_changed', engine = engine, state = e.state, reason = 'registered'})
return 1

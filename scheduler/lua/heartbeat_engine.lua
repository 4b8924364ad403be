-- An engine lives.
--
-- KEYS[1]  engine:<id> (hash)
-- ARGV[1]  engine
-- ARGV[2]  load, 0 to 1
-- ARGV[3]  chunk_ms, ms
-- ARGV[4]  worst_ms, ms
-- ARGV[5]  phase
-- ARGV[6]  time that the phase may still take, ms from now; '' without a limit
-- ARGV[7]  JSON EngineCosts; '' leaves them as they are
-- Derived  engines (zset)
-- Returns  the engine's state
-- Errors   ENGINE_GONE, ENGINE_UNKNOWN
-- Events   none: the leader reads heartbeats each tick

local e = read_hash(KEYS[1])
if not e then
  return fail('ENGINE_UNKNOWN', 'no record of engine ' .. ARGV[1])
end
if e.state == 'gone' then
  return fail('ENGINE_GONE', ARGV[1] .. ' was declared gone and must exit')
end
local now = now_ms()
local deadline = ''
if ARGV[6] ~= '' then
  deadline = string.format('%.0f', now + math.floor(ARGV[6]))
end
redis.call('HSET', KEYS[1], 'load', ARGV[2], 'chunk_ms', ARGV[3], 'worst_ms', ARGV[4], 'phase', ARGV[5],
  'deadline_ms', deadline, 'heartbeat_ms', now)
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[1], 'costs', ARGV[7])
end
redis.call('ZADD', key('engines'), now, ARGV[1])
return e.state

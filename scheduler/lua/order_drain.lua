-- An administrator wants an engine drained: note it on the engine and wake the leader.
--
-- KEYS[1]  engine:<id> (hash)
-- ARGV[1]  engine
-- Returns  1
-- Errors   NO_SUCH_ENGINE
-- Events   engine_changed (state unchanged)

local e = read_hash(KEYS[1])
if not e or e.state == 'gone' then
  return fail('NO_SUCH_ENGINE', 'no engine ' .. ARGV[1])
end
redis.call('HSET', KEYS[1], 'drain_ordered', 1)
emit({type = 'engine_changed', engine = ARGV[1], state = e.state, reason = 'drain ordered'})
return 1

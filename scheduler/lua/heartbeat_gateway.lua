-- A gateway lives. Who was left because it was silent, and whose client neither left nor attached since, waits again.
--
-- KEYS[1]  gateway:<id> (hash, expires)
-- ARGV[1]  gateway
-- ARGV[2…] field, value, … that it says about itself
-- Derived  gateways (zset), gateway:<id>:lost (set), session:<id> (hashes), queue:<model> (zsets), subject:<name> and
--          controlled:<name> (sets)
-- Returns  1
-- Events   controller_changed, with the epoch as it was, of each session that waits again

local now = now_ms()
redis.call('HSET', KEYS[1], 'heartbeat_ms', now, unpack(ARGV, 2))
redis.call('EXPIRE', KEYS[1], GATEWAY_TTL_S)
redis.call('ZADD', key('gateways'), now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', key('gateways'), '-inf', now - GATEWAY_TTL_S * 1000)
for _, session in ipairs(redis.call('SMEMBERS', key('lost', ARGV[1]))) do
  local s = read_hash(key('session', session))
  if s and s.phase ~= 'closed' and s.left_ms ~= '' and s.gateway == ARGV[1] then
    come_back(session, s, ARGV[1])
  end
end
redis.call('DEL', key('lost', ARGV[1]))
return 1

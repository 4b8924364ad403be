-- A gateway lives.
--
-- KEYS[1]  gateway:<id> (hash, expires)
-- ARGV[1]  gateway
-- ARGV[2…] field, value, … that it says about itself
-- Derived  gateways (zset)
-- Returns  1
-- Events   none

local now = now_ms()
redis.call('HSET', KEYS[1], 'heartbeat_ms', now, unpack(ARGV, 2))
redis.call('EXPIRE', KEYS[1], GATEWAY_TTL_S)
redis.call('ZADD', key('gateways'), now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', key('gateways'), '-inf', now - GATEWAY_TTL_S * 1000)
return 1

-- A gateway ends.
--
-- KEYS[1]  gateway:<id> (hash)
-- ARGV[1]  gateway
-- Derived  gateways (zset)
-- Returns  1
-- Events   none

redis.call('DEL', KEYS[1])
redis.call('ZREM', key('gateways'), ARGV[1])
return 1

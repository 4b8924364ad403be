-- The owner generates: gateways may subscribe.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  engine
-- ARGV[3]  epoch
-- ARGV[4]  state_bytes, what a migration sends; 0 when unknown
-- Returns  1
-- Errors   STALE_EPOCH
-- Events   session_opened

local s = read_hash(KEYS[1])
local bad = check_owner(s, ARGV[2], ARGV[3])
if bad then
  return bad
end
redis.call('HSET', KEYS[1], 'opened', 1, 'state_bytes', ARGV[4])
emit({type = 'session_opened', session = ARGV[1], engine = ARGV[2], epoch = tonumber(ARGV[3])})
return 1

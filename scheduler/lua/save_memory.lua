-- Keep the policy's memory for the next leader.
--
-- KEYS[1]  memory (hash)
-- ARGV[1]  term of the leader
-- ARGV[2]  data, bytes
-- Returns  1
-- Errors   STALE_TERM
-- Events   none

local bad = check_term(ARGV[1])
if bad then
  return bad
end
redis.call('HSET', KEYS[1], 'term', ARGV[1], 'data', ARGV[2])
return 1

-- What the leader shows about itself.
--
-- KEYS[1]  cluster (hash)
-- ARGV[1]  term of the leader
-- ARGV[2]  name of the policy
-- ARGV[3]  budget, engines
-- ARGV[4]  release_interval_ms, ms
-- ARGV[5]  start_ms: what an engine's start takes, ms
-- ARGV[6]  retain_s: how long closed sessions are known, s
-- Returns  1
-- Errors   STALE_TERM
-- Events   none

local bad = check_term(ARGV[1])
if bad then
  return bad
end
redis.call('HSET', KEYS[1], 'policy', ARGV[2], 'budget', ARGV[3], 'release_interval_ms', ARGV[4],
  'start_ms', ARGV[5], 'retain_s', ARGV[6])
return 1

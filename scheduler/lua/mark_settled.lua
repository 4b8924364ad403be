-- Whoever outlived a loss of data has had the time to say what it has: from now on the records are the truth.
--
-- KEYS[1]  settled (string)
-- ARGV[1]  term of the leader
-- Returns  1
-- Errors   STALE_TERM
-- Events   none

local bad = check_term(ARGV[1])
if bad then
  return bad
end
redis.call('SET', KEYS[1], ARGV[1])
return 1

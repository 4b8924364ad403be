-- What the leader did and why, for people.
--
-- KEYS[1]  decisions (stream)
-- ARGV[1]  term of the leader
-- ARGV[2]  a sentence, and so each further argument
-- Returns  1
-- Errors   STALE_TERM
-- Events   none

local bad = check_term(ARGV[1])
if bad then
  return bad
end
for i = 2, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', MAX_DECISIONS, '*', 'text', ARGV[i])
end
return 1

-- Become the leader, if nobody is.
--
-- KEYS[1]  lease (hash, expires)
-- ARGV[1]  owner
-- ARGV[2]  ttl_ms, ms
-- ARGV[3]  floor: the new term is above it
-- Derived  term (string), settled (string): a term below the floor means that Redis lost data
--          where there is none, the server's time, s: no leader of before can have a term that is given again
-- Returns  the new term, or 0 while somebody leads
-- Events   none

if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local known = tonumber(redis.call('GET', key('term')) or '0')
if known < tonumber(ARGV[3]) then
  redis.call('DEL', key('settled'))
end
if known == 0 then
  known = tonumber(redis.call('TIME')[1])
end
local term = math.max(known, tonumber(ARGV[3])) + 1
redis.call('SET', key('term'), term)
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'term', term)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return term

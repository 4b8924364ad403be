-- Events that were read are not there, though the stream was not trimmed: Redis came back older, or empty, perhaps
-- with the same term and a leader in force. Who leads must acquire a lease above all terms that were known, and hear
-- engines before it decides; what is wanted is forgotten. No effect where a newer leader knows of the loss.
--
-- KEYS[1]  term (string)
-- ARGV[1]  seen: the newest term that the caller knew of before the loss
-- Derived  lease (hash), desired (hash), settled (string): a term up to `seen` says that it was marked before the loss
-- Returns  1, or 0 without an effect
-- Events   desired_changed when a set is forgotten

local seen = tonumber(ARGV[1])
local known = tonumber(redis.call('GET', KEYS[1]) or '0')
local leading = tonumber(redis.call('HGET', key('lease'), 'term') or '0')
local settled = redis.call('GET', key('settled'))
if settled and tonumber(settled) > seen then
  return 0
end
if not settled and leading > seen then
  return 0
end
local floor = math.max(known, seen + 1)
redis.call('SET', KEYS[1], floor)
redis.call('DEL', key('lease'), key('settled'))
if redis.call('DEL', key('desired')) == 1 then
  emit({type = 'desired_changed', term = floor})
end
return 1

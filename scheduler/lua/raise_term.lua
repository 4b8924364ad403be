-- A provisioner has obeyed a leader of a newer term than Redis knows: Redis lost data. Who leads below that
-- term must acquire a lease above it, and what it wanted is forgotten.
--
-- KEYS[1]  term (string)
-- ARGV[1]  floor: the newest term that was obeyed
-- Derived  lease (hash), desired (hash), settled (string)
-- Returns  1 if there was a leader or a set below it, else 0
-- Events   desired_changed when a set is forgotten

local floor = tonumber(ARGV[1])
if tonumber(redis.call('GET', KEYS[1]) or '0') < floor then
  redis.call('SET', KEYS[1], ARGV[1])
  redis.call('DEL', key('settled'))  -- the next leader won't see from the term that data was lost
end
local changed = 0
local leading = redis.call('HGET', key('lease'), 'term')
if leading and tonumber(leading) < floor then
  redis.call('DEL', key('lease'), key('settled'))
  changed = 1
end
local wanted = redis.call('HGET', key('desired'), 'term')
if wanted and tonumber(wanted) < floor then
  redis.call('DEL', key('desired'))
  emit({type = 'desired_changed', term = floor})
  changed = 1
end
return changed

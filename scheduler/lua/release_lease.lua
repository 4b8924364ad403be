-- Stop leading, so that a standby may lead at once.
--
-- KEYS[1]  lease (hash)
-- ARGV[1]  owner
-- ARGV[2]  term
-- Returns  1, or 0 when the lease is another's
-- Events   none

local lease = read_hash(KEYS[1])
if not lease or lease.owner ~= ARGV[1] or lease.term ~= ARGV[2] then
  return 0
end
redis.call('DEL', KEYS[1])
return 1

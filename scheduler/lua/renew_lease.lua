-- Keep leading.
--
-- KEYS[1]  lease (hash, expires)
-- ARGV[1]  owner
-- ARGV[2]  term
-- ARGV[3]  ttl_ms, ms
-- Returns  1, or 0 when the lease is another's or ended
-- Events   none

local lease = read_hash(KEYS[1])
if not lease or lease.owner ~= ARGV[1] or lease.term ~= ARGV[2] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1

-- The owner closes a session.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  engine
-- ARGV[3]  epoch
-- ARGV[4]  reason
-- Derived  as close_session
-- Returns  1
-- Errors   STALE_EPOCH
-- Events   session_closed

local s = read_hash(KEYS[1])
local bad = check_owner(s, ARGV[2], ARGV[3])
if bad then
  return bad
end
close(ARGV[1], s, ARGV[4], ARGV[2])
return 1

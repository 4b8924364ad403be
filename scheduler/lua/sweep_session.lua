-- Close a queued session that nobody controls any more.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  term of the leader
-- ARGV[3]  left_ms that the leader saw, ms of Redis time
-- ARGV[4]  reason
-- Derived  as close_session
-- Returns  1 closed, 0 it was closed, placed or taken over meanwhile
-- Errors   STALE_TERM
-- Events   session_closed

local bad = check_term(ARGV[2])
if bad then
  return bad
end
local s = read_hash(KEYS[1])
if not s or s.phase ~= 'queued' or s.left_ms ~= ARGV[3] then
  return 0
end
close(ARGV[1], s, ARGV[4], '')
return 1

-- Close a session, whoever owns it. Idempotent.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  controller_epoch of the closing connection, 0 for anybody
-- ARGV[3]  reason
-- Derived  everything of the session, queue:<model> (zset), sessions (zset), engine:<id>, its placed set
--          and commands
-- Returns  1 closed now, 0 it was closed before
-- Errors   NO_SUCH_SESSION, STALE_CONTROLLER
-- Events   session_closed; the owner gets the command close

local s = read_hash(KEYS[1])
if s and s.phase == 'closed' then
  return 0
end
local bad = check_controller(s, ARGV[2])
if bad then
  return bad
end
close(ARGV[1], s, ARGV[3], '')
return 1

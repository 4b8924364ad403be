-- The leader declares an engine gone. Idempotent.
--
-- KEYS[1]  engine:<id> (hash)
-- ARGV[1]  engine
-- ARGV[2]  term of the leader
-- ARGV[3]  reason
-- ARGV[4]  1 if it hangs by its own fault, 0 if it can't be heard
-- Derived  engines (zset), engine:<id>:placed (set), engine:<id>:commands (stream), its sessions and queues
-- Returns  ids of the sessions that wait again
-- Errors   STALE_TERM
-- Events   engine_changed, session_queued per session, session_closed per poisonous one, session_changed per session
--          that was on its way there

local bad = check_term(ARGV[2])
if bad then
  return bad
end
local e = read_hash(KEYS[1])
if not e or e.state == 'gone' then
  return {}
end
return retire(ARGV[1], e, ARGV[3], ARGV[4] == '1')

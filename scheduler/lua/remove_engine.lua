-- An engine says goodbye, or a provisioner saw its process end. Idempotent.
--
-- KEYS[1]  engine:<id> (hash)
-- ARGV[1]  engine
-- ARGV[2]  reason
-- ARGV[3]  1 if it crashed, 0 if it ends in order
-- Derived  engines (zset), engine:<id>:placed (set), engine:<id>:commands (stream), its sessions and queues
-- Returns  ids of the sessions that wait again
-- Events   engine_changed, session_queued per session, session_closed per poisonous one

local e = read_hash(KEYS[1])
if not e or e.state == 'gone' then
  return {}
end
return retire(ARGV[1], e, ARGV[2], ARGV[3] == '1')

-- An engine says goodbye, or a provisioner saw its process end. Idempotent.
--
-- KEYS[1]  engine:<id> (hash)
-- ARGV[1]  engine
-- ARGV[2]  reason
-- ARGV[3]  1 if it crashed by its own fault, 0 if it ends in order or was killed
-- Derived  engines (zset), engine:<id>:placed (set), engine:<id>:commands (stream), its sessions and queues
-- Returns  ids of the sessions that wait again
-- Events   engine_changed, session_queued per session, session_closed per poisonous one, session_changed per session
--          that was on its way there

local e = read_hash(KEYS[1])
if not e then
  return {}
end
if e.state == 'gone' then
  if ARGV[3] == '1' and e.suspects then  -- it was found silent before its end was known
    redis.call('HDEL', KEYS[1], 'suspects')
    local open = {}
    for _, session in ipairs(cjson.decode(e.suspects)) do
      local s = read_hash(key('session', session))
      if s and s.phase ~= 'closed' then
        open[#open + 1] = session
      end
    end
    local poison = strike(open)
    for _, session in ipairs(open) do
      if poison[session] then
        close(session, read_hash(key('session', session)), 'engine_crashed', '')
      end
    end
  end
  return {}
end
return retire(ARGV[1], e, ARGV[2], ARGV[3] == '1')

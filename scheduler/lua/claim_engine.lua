-- A provisioner on a machine of its own takes one engine that should exist and that nobody starts yet.
--
-- KEYS[1]  desired (hash)
-- Derived  engine:<id> (hash)
-- Returns  engine id, or '' when no engine is wanted
-- Events   none

local engines = redis.call('HGET', KEYS[1], 'engines')
if not engines then
  return ''
end
for _, wanted in ipairs(cjson.decode(engines)) do
  local record = key('engine', wanted.id)
  local e = read_hash(record)
  if e and e.state == 'starting' and not e.claimed_ms then
    local now = now_ms()
    -- The start's time limit runs from here: until now nobody was starting it.
    redis.call('HSET', record, 'claimed_ms', now, 'started_ms', now, 'heartbeat_ms', now)
    return wanted.id
  end
end
return ''

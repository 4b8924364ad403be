-- A provisioner takes an engine that should exist and that nobody starts yet. A repeat has the same answer.
--
-- KEYS[1]  desired (hash)
-- ARGV[1]  claimer: its name, used by no other that runs
-- ARGV[2]  engine to take, '' for any
-- Derived  engine:<id> (hash)
-- Returns  engine id, or '' when it is not wanted, or somebody else's
-- Events   none

local claimer, engine = ARGV[1], ARGV[2]
local engines = redis.call('HGET', KEYS[1], 'engines')
if not engines then
  return ''
end
for _, wanted in ipairs(cjson.decode(engines)) do
  local record = key('engine', wanted.id)
  local e = (engine == '' or engine == wanted.id) and read_hash(record)
  if e and e.state == 'starting' then
    if e.claimed_by == claimer then
      return wanted.id
    end
    -- One that beats is being started, though Redis has lost for whom: two processes would have one id.
    if not e.claimed_by and e.phase == 'wanted' then
      local now = now_ms()
      -- The start's time limit runs from here: until now nobody was starting it.
      redis.call('HSET', record, 'claimed_by', claimer, 'started_ms', now, 'heartbeat_ms', now)
      return wanted.id
    end
  end
end
return ''

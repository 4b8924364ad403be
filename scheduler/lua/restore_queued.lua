-- Redis lost a session that waits and never had an owner: the gateway that took it in writes it again.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  model
-- ARGV[3]  prompt, JSON PromptInput
-- ARGV[4]  message id of the prompt, or ''
-- ARGV[5]  seed
-- ARGV[6]  lead_ms, ms
-- ARGV[7]  codec
-- ARGV[8]  resume_hash, hex
-- ARGV[9]  gateway
-- ARGV[10] created_ms, ms of Redis time
-- ARGV[11] paused, 0 or 1
-- ARGV[12] JSON list of {entry, JSON Input, message id or ''}: what was accepted since
-- ARGV[13] subject that it belongs to, or ''
-- Derived  as create_session
-- Returns  1 written, 0 there is a record already
-- Events   session_queued

local session = ARGV[1]
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
put_queued(session, ARGV[2], {created_ms = ARGV[10], seed = ARGV[5], lead_ms = ARGV[6], codec = ARGV[7],
  resume_hash = ARGV[8], gateway = ARGV[9], subject = ARGV[13]})
redis.call('HSET', KEYS[1], 'paused', ARGV[11], 'active', 1 - ARGV[11])
-- Under their first ids: an engine that has them all the same, and says so later, does not apply them again.
local inputs = key('inputs', session)
local entry = redis.call('XADD', inputs, ARGV[10] .. '-0', 'm', ARGV[3])
if ARGV[4] ~= '' then
  remember(session, ARGV[4], entry)
end
for _, input in ipairs(cjson.decode(ARGV[12])) do
  redis.pcall('XADD', inputs, input[1], 'm', input[2])
  if input[3] ~= '' then
    remember(session, input[3], input[1])
  end
end
emit({type = 'session_queued', session = session, reason = ''})
return 1

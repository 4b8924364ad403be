-- Write a new session: queued, with its prompt as first entry of its input log.
--
-- KEYS[1]  session:<id> (hash, must not exist)
-- ARGV[1]  session
-- ARGV[2]  model
-- ARGV[3]  prompt, JSON PromptInput
-- ARGV[4]  message id of the prompt, or ''
-- ARGV[5]  seed
-- ARGV[6]  lead_ms, ms
-- ARGV[7]  codec
-- ARGV[8]  resume_hash, hex
-- ARGV[9]  gateway
-- ARGV[10] queue_limit, sessions
-- ARGV[11] subject that it belongs to, or ''
-- ARGV[12] sessions that the subject may have at once, '' for any number
-- Derived  subject:<name> and controlled:<name> (sets), queue:<model> (zset), queued_models (set), serial (string),
--          sessions (zset), session:<id>:inputs (stream), session:<id>:ids (hash), session:<id>:id_order (list)
-- Returns  id of the prompt's log entry
-- Errors   QUEUE_FULL: the queue, or the subject's share of it; QUOTA; REFUSED
-- Events   session_queued

local session, model, id = ARGV[1], ARGV[2], ARGV[4]
if redis.call('EXISTS', KEYS[1]) == 1 then
  return fail('REFUSED', 'the session exists already')
end
local subject, quota = ARGV[11], tonumber(ARGV[12])
if quota and redis.call('SCARD', key('subject', subject)) >= quota then
  return fail('QUOTA', 'this subject may have ' .. ARGV[12] .. ' sessions at once: stop one first')
end
-- A subject may wait with as many sessions as leave so many places of the queue to others: alone it takes half.
local left = tonumber(ARGV[10]) - redis.call('ZCARD', key('queue', model))
if left <= 0 or (subject ~= '' and count_waiting(model, subject) >= left) then
  return fail('QUEUE_FULL')
end

put_queued(session, model, {created_ms = string.format('%.0f', now_ms()), seed = ARGV[5], lead_ms = ARGV[6],
  codec = ARGV[7], resume_hash = ARGV[8], gateway = ARGV[9], subject = subject})
local entry = redis.call('XADD', key('inputs', session), '*', 'm', ARGV[3])
if id ~= '' then
  remember(session, id, entry)
end
emit({type = 'session_queued', session = session, reason = ''})
return entry

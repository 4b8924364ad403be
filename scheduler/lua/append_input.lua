-- Append to a session's input log, once per message id, and once per write where there is none.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  controller_epoch of the writing connection
-- ARGV[3]  JSON Input
-- ARGV[4]  message id, or ''
-- ARGV[5]  name of this write, or ''
-- ARGV[6…] ids of other messages that are merged into it
-- Derived  session:<id>:inputs (stream), session:<id>:ids (hash; at '' the newest write), session:<id>:id_order (list)
-- Returns  {entry id, is_repeat 0/1, rev or '', seq or ''}; of a repeat the first append's entry
-- Errors   NO_SUCH_SESSION, SESSION_CLOSED, STALE_CONTROLLER, INPUT_LOG_FULL
-- Events   none: the owner blocks on the log itself

local session, id, write = ARGV[1], ARGV[4], ARGV[5]
local s = read_hash(KEYS[1])
local bad = check_controller(s, ARGV[2])
if bad then
  return bad
end
local ids, inputs = key('ids', session), key('inputs', session)
if id ~= '' then
  local known = redis.call('HGET', ids, id)
  if known and string.sub(known, 1, 1) == '@' then
    known = redis.call('HGET', ids, string.sub(known, 2))
  end
  if known then
    local entry, rev, seq = string.match(known, '^(%S+) ?(%S*) ?(%S*)$')
    return {entry, 1, rev, seq}
  end
elseif write ~= '' then
  local newest, entry = string.match(redis.call('HGET', ids, '') or '', '^(%S+) (%S+)$')
  if newest == write then
    return {entry, 1, '', ''}
  end
end
if redis.call('XLEN', inputs) >= MAX_INPUT_LOG then
  return fail('INPUT_LOG_FULL', 'the session has taken as many inputs as it can')
end

hold_control(session, s, ARGV[2])
local entry = redis.call('XADD', inputs, '*', 'm', ARGV[3])
for i = 6, #ARGV do
  if redis.call('HEXISTS', ids, ARGV[i]) == 0 then
    remember(session, ARGV[i], '@' .. id)
  end
end
if id ~= '' then
  remember(session, id, entry)
elseif write ~= '' then
  redis.call('HSET', ids, '', write .. ' ' .. entry)
end
return {entry, 0, '', ''}

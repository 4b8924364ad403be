-- A gateway is silent, or a new process has its id: whoever waits for a place through it is left.
--
-- KEYS[1]  gateway:<id> (hash)
-- ARGV[1]  gateway
-- ARGV[2]  term of the leader, '' where the new process itself says so
-- Derived  queued_models (set), queue:<model> (zsets), session:<id> (hashes), gateway:<id>:lost (set), subject:<name>
--          and controlled:<name> (sets)
-- Returns  how many sessions that are; 0 as well if the gateway was heard meanwhile
-- Errors   STALE_TERM
-- Events   session_left of each

local gateway, is_new = ARGV[1], ARGV[2] == ''
if not is_new then
  local bad = check_term(ARGV[2])
  if bad then
    return bad
  end
  if redis.call('EXISTS', KEYS[1]) == 1 then
    return 0
  end
end
local lost = {}
for _, model in ipairs(redis.call('SMEMBERS', key('queued_models'))) do
  for _, session in ipairs(redis.call('ZRANGE', key('queue', model), 0, -1)) do
    if redis.call('HGET', key('session', session), 'gateway') == gateway then
      leave(session, read_hash(key('session', session)))
      lost[#lost + 1] = session
    end
  end
end
if is_new then -- nobody comes back: their connections ended with the process before
  redis.call('DEL', key('lost', gateway))
elseif #lost > 0 then
  for _, session in ipairs(lost) do
    redis.call('SADD', key('lost', gateway), session)
  end
  redis.call('EXPIRE', key('lost', gateway), GONE_TTL_S)
end
return #lost

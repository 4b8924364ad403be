-- Read what is shown of sessions that are not closed, oldest first, a part at a time.
--
-- KEYS[1]  sessions (sorted set)
-- ARGV[1]  the last session of the part before; "" for the first part
-- ARGV[2]  its created_ms, ms
-- ARGV[3]  sessions, at most
-- Derived  session:<id> (hashes)
-- Returns  JSON list of [session, created_ms, [phase, active, engine, epoch, next_seq, slack_ms]] with false for
--          what is not there; {} when there are none
-- Events   none

local from = 0
if ARGV[1] ~= '' then
  local rank = redis.call('ZRANK', KEYS[1], ARGV[1])
  if rank then
    from = rank + 1
  else -- closed since: behind all that were before it
    from = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. ARGV[2])
    for _, session in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[2], ARGV[2])) do
      if session < ARGV[1] then
        from = from + 1
      end
    end
  end
end
local line = redis.call('ZRANGE', KEYS[1], from, from + ARGV[3] - 1, 'WITHSCORES')
local found = {}
for at = 1, #line, 2 do
  local fields = redis.call('HMGET', key('session', line[at]), 'phase', 'active', 'engine', 'epoch', 'next_seq',
    'slack_ms')
  found[#found + 1] = {line[at], line[at + 1], fields}
end
return cjson.encode(found)

-- The controlling connection is gone. No effect on a session that is closed or has a newer connection.
--
-- KEYS[1]  session:<id> (hash)
-- ARGV[1]  session
-- ARGV[2]  controller_epoch of the connection
-- Derived  queue:<model> (zset): a queued session leaves the line, its order is kept; subject:<name> and
--          controlled:<name> (sets)
-- Returns  1 if it was the controlling one, else 0
-- Events   session_left

local s = read_hash(KEYS[1])
if check_controller(s, ARGV[2]) then
  return 0
end
-- Also of one that was left because its gateway was silent: it does not get this one back.
redis.call('HSET', KEYS[1], 'gateway', '')
if s.left_ms ~= '' then
  return 0
end
leave(ARGV[1], s)
return 1

"""What must happen on the server in one piece? Four Lua scripts, in Redis 7.0's commands.

A script answers with integers or flat lists only, and every key that it touches is handed in.
"""

from typing import Final

from agentserve.tracker.connection import Script

COMMITTED: Final = 1

COMMIT: Final = Script("""
-- Write a run if it is still the one that the writer read; otherwise answer with what is stored.
-- KEYS: run, then lists of five: index, index of each status; of all runs, and of those of its tenant if it has one.
-- ARGV: token read ('' to create), token of this commit, ttl, run id, score, place of the run's status behind the index
-- (0: unchanged), longest index, then fields and values.
local run = KEYS[1]
local read, mine, ttl, id = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local stored = redis.call('HGET', run, 'token') or ''
if stored == mine then
  return 1  -- this very commit was done before; its answer was lost
end
if stored ~= read then
  return redis.call('HGETALL', run)
end
redis.call('HSET', run, 'token', mine)
for i = 8, #ARGV, 1000 do
  redis.call('HSET', run, unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
redis.call('EXPIRE', run, ttl)
local place = tonumber(ARGV[6])
for at = 2, #KEYS, 5 do
  local index = KEYS[at]
  if read == '' then
    redis.call('ZADD', index, ARGV[5], id)
  end
  if place > 0 and redis.call('ZSCORE', index, id) then
    for k = 1, 4 do
      if k == place then
        redis.call('ZADD', KEYS[at + k], ARGV[5], id)
      else
        redis.call('ZREM', KEYS[at + k], id)
      end
    end
  end
  local over = redis.call('ZCARD', index) - tonumber(ARGV[7])
  if over > 0 then
    local oldest = redis.call('ZPOPMIN', index, over)
    for i = 1, #oldest, 2 do
      for k = 1, 4 do
        redis.call('ZREM', KEYS[at + k], oldest[i])
      end
    end
  end
end
for k = 2, #KEYS do
  redis.call('EXPIRE', KEYS[k], ttl)
end
return 1
""")

COUNT: Final = Script("""
-- Add to counters once, however often it is sent; a counter that falls to zero ends.
-- KEYS: counters, token. ARGV: ttl, most fields, then fields and increments.
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', 60) then
  return 1
end
local room = tonumber(ARGV[2]) - redis.call('HLEN', KEYS[1])
for i = 3, #ARGV, 2 do
  if room > 0 or redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    local count = redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
    if count <= 0 then
      redis.call('HDEL', KEYS[1], ARGV[i])
    elseif count == tonumber(ARGV[i + 1]) then
      room = room - 1
    end
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
""")

APPEND: Final = Script("""
-- Add events to their runs' streams, their facts to the feed, and ends of runs to the counted ones.
-- KEYS: feed, runs ended of each of three outcomes, then streams. ARGV: ttl, about how many events a stream keeps, how
-- many entries the feed keeps, the facts, how long ends are kept, how many of them, the number of ends, then for each
-- the place of its outcome in KEYS, when and which run; then the place of a stream in KEYS and an event, and so on.
local ends = tonumber(ARGV[7])
for i = 8, 7 + 3 * ends, 3 do
  local key = KEYS[tonumber(ARGV[i])]
  redis.call('ZADD', key, ARGV[i + 1], ARGV[i + 2])
  redis.call('ZREMRANGEBYSCORE', key, '-inf', '(' .. string.format('%.3f', ARGV[i + 1] - ARGV[5]))
  redis.call('ZREMRANGEBYRANK', key, 0, -1 - ARGV[6])
  redis.call('EXPIRE', key, ARGV[5])
end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'e', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[1])
for i = 8 + 3 * ends, #ARGV, 2 do
  redis.call('XADD', KEYS[tonumber(ARGV[i])], 'MAXLEN', '~', ARGV[2], '*', 'e', ARGV[i + 1])
end
for k = 5, #KEYS do
  redis.call('EXPIRE', KEYS[k], ARGV[1])
end
return 1
""")

PUSH: Final = Script("""
-- Put a value at the head of a list, once however often it is sent. KEYS: list. ARGV: value, longest list.
if redis.call('LINDEX', KEYS[1], 0) ~= ARGV[1] then
  redis.call('LPUSH', KEYS[1], ARGV[1])
  redis.call('LTRIM', KEYS[1], 0, tonumber(ARGV[2]) - 1)
end
return 1
""")

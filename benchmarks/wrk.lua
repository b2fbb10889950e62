-- wrk -s wrk.lua URL -- BODIES [times]: POSTs the lines of the file BODIES in turn, and prints what came of it as JSON.
-- With `times` the moment of every good answer is kept, which costs too much where nothing but the server is measured.
local ffi = require("ffi")
ffi.cdef("typedef struct { long seconds; long nanos; } moment; int clock_gettime(int clock, moment *now);")

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
  local requests, turn = {}, 0
  for line in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format(nil, nil, nil, line)
  end
  request = function()
    turn = turn % #requests + 1
    return requests[turn]
  end
  times = {}
  if args[2] == "times" then
    local now = ffi.new("moment")
    response = function(status)
      if status == 200 then
        ffi.C.clock_gettime(1, now)
        times[#times + 1] = tonumber(now.seconds) + tonumber(now.nanos) / 1e9
      end
    end
  end
end

function done(summary, latency)
  local errors, moments = summary.errors, {}
  for _, thread in ipairs(threads) do
    for _, moment in ipairs(thread:get("times")) do
      moments[#moments + 1] = string.format("%.6f", moment)
    end
  end
  print(string.format(
    '{"requests": %d, "seconds": %.6f, "errors": %d, "p50": %.3f, "p90": %.3f, "p95": %.3f, "p99": %.3f, "times": [%s]}',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, table.concat(moments, ",")))
end

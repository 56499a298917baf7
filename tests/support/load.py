#!/usr/bin/python3
"""Drive a skewed load against a memcached with a real client library (pymemcache) and print, as JSON, what was sent.

usage: load.py SERVER:PORT --sources A[/SHARE],B[/SHARE],... --seconds N [--suffix ~] [--keys N] [--seed N]

One process a source address. The hottest key is user:0001:profile; keys follow a Zipf-like law; some keys are never written, so
that they miss. Bounded by --seconds and by --requests (per process). Output: {"keys": {key: {get, hit, miss, set, delete,
incr, touch}}, "clients": {ip: requests}, "requests": n, "seconds": s}.
"""
import argparse, bisect, collections, json, multiprocessing, random, socket, time
from pymemcache.client.base import Client


class BoundSocket:
    """Stands in for the socket module: every socket it makes is bound to one source address."""

    def __init__(self, source):
        self.source = source

    def __getattr__(self, name):
        return getattr(socket, name)

    def socket(self, *args, **kwargs):
        made = socket.socket(*args, **kwargs)
        made.bind((self.source, 0))
        return made


def key_names(count, suffix):
    # Of fixed width: memcached merges the statistics of a prefix with those of a longer one that begins with it.
    kinds = ["user:%04d:profile", "session/%08x", "cfg.flag.%04d", "frag_%04d_html"]
    return [(kinds[i % 4] % (i // 4 + 1)) + suffix for i in range(count)]


def run(args, source, share, seed, results):
    rng = random.Random(seed)
    names = key_names(args.keys, args.suffix)
    never_written = set(names[7::10])  # these stay misses
    cumulative, total = [], 0.0
    for rank in range(1, len(names) + 1):
        total += 1.0 / rank
        cumulative.append(total)
    host, port = args.server.rsplit(":", 1)
    client = Client((host, int(port)), socket_module=BoundSocket(source), no_delay=True, default_noreply=False)
    counts = collections.defaultdict(collections.Counter)
    requests = 0

    def pick():
        return names[bisect.bisect_left(cumulative, rng.random() * total)]

    start = time.monotonic()
    while time.monotonic() - start < args.seconds and requests < args.requests:
        what, key = rng.random(), pick()
        before = requests
        if what < 0.80:
            value = client.get(key)
            requests += 1
            counts[key]["get"] += 1
            counts[key]["hit" if value is not None else "miss"] += 1
            if value is None and key not in never_written:
                client.set(key, b"v" * rng.choice([20, 200, 2000]))
                requests += 1
                counts[key]["set"] += 1
        elif what < 0.90:
            keys = {pick() for _ in range(rng.randint(2, 12))}
            found = client.get_many(keys)
            requests += len(keys)
            for each in keys:
                counts[each]["get"] += 1
                counts[each]["hit" if each in found else "miss"] += 1
        elif what < 0.96 and key not in never_written:
            client.set(key, b"w" * rng.choice([20, 200, 2000, 20000]), noreply=rng.random() < 0.3)
            requests += 1
            counts[key]["set"] += 1
        elif what < 0.98:
            client.delete(key)
            requests += 1
            counts[key]["delete"] += 1
        else:
            client.touch(key, 3600)
            requests += 1
            counts[key]["touch"] += 1
        if share < 1.0:
            time.sleep((1.0 - share) * 0.0005 * (requests - before))
    client.close()
    results.put((source, requests, {key: dict(c) for key, c in counts.items()}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("server")
    parser.add_argument("--sources", required=True)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--requests", type=int, default=2_000_000)
    parser.add_argument("--suffix", default="")
    parser.add_argument("--keys", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    results = multiprocessing.Queue()
    workers = []
    for index, each in enumerate(args.sources.split(",")):
        source, _, share = each.partition("/")
        workers.append(multiprocessing.Process(target=run, args=(args, source, float(share or 1), args.seed + index, results)))
    start = time.monotonic()
    for worker in workers:
        worker.start()
    keys, clients = collections.defaultdict(collections.Counter), {}
    for _ in workers:
        source, requests, counts = results.get(timeout=args.seconds + 60)
        clients[source] = requests
        for key, counter in counts.items():
            keys[key].update(counter)
    for worker in workers:
        worker.join()
    print(json.dumps({"keys": keys, "clients": clients, "requests": sum(clients.values()),
                      "seconds": round(time.monotonic() - start, 3)}))


if __name__ == "__main__":
    main()

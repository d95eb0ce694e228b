package batch

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"winnow/internal/failpoint"
	"winnow/internal/testkit/s3"
)

// setAccount sets the account of a server's clients. t.Setenv would not allow
// parallel tests below this one.
func setAccount(t *testing.T, s s3.Server) {
	t.Helper()
	for k, v := range map[string]string{"AWS_ACCESS_KEY_ID": s.AccessKey, "AWS_SECRET_ACCESS_KEY": s.SecretKey} {
		old, was := os.LookupEnv(k)
		require.NoError(t, os.Setenv(k, v))
		t.Cleanup(func() {
			if was {
				os.Setenv(k, old)
			} else {
				os.Unsetenv(k)
			}
		})
	}
}

// bucketAt returns the location of a prefix in the server's bucket.
func bucketAt(s s3.Server, prefix string) string {
	q := url.Values{"region": {s.Region}, "endpoint": {s.Endpoint}, "use_path_style": {"true"}}
	return "s3://" + s.Bucket + "/" + prefix + "?" + q.Encode()
}

// setPatience makes requests give up early.
func setPatience(t *testing.T, request, whole time.Duration) {
	r, w := requestTime, patience
	requestTime, patience = request, whole
	t.Cleanup(func() { requestTime, patience = r, w })
}

// A dataset in a bucket is the same as one in a directory.
func TestBucket(t *testing.T) {
	server := s3.Start(t)
	setAccount(t, server)
	l := newLog(newSource(t), bucketAt(server, "a/b"), 3)
	require.NoError(t, l.process(2*logBatch, l.raceOf(logBatch)))
	s, err := Open(l.location)
	require.NoError(t, err)
	l.verify(s)
	require.Len(t, l.acked, 2)
	l.finish()
	_, err = Open(strings.Replace(l.location, "/a/b?", "/a?", 1))
	require.ErrorContains(t, err, "not a dataset")
	_, err = Create(strings.Replace(l.location, "/a/b?", "/a?", 1))
	require.ErrorContains(t, err, "not empty")
}

// bucketFaults are those of a proxy. The server, or what stands before it,
// answers 412 although nothing is there with Exists.
var bucketFaults = []s3.Fault{s3.Conflict, s3.Exists, s3.Denied, s3.InternalError, s3.SlowDown, s3.LoseReply, s3.CutRequest, s3.CutReply, s3.Delayed}

// fault does f to a request.
func fault(r *http.Request, f s3.Fault) s3.Fault {
	if f == s3.Delayed {
		return s3.Delay(r, 20*time.Millisecond)
	}
	return f
}

// Every request fails in turn, those that create in every way. Whoever comes
// next carries on, and every row is there once.
func TestEveryRequestFails(t *testing.T) {
	server, in := s3.Start(t), newSource(t)
	setAccount(t, server)
	// run carries the log through a lost race; rule gets the requests by number.
	run := func(in source, p *s3.Proxy, name string, rule func(int64, *http.Request) s3.Fault) (*testLog, error) {
		l := newLog(in, bucketAt(p.Server, name), 3)
		var n atomic.Int64
		p.Set(func(r *http.Request) s3.Fault { return rule(n.Add(1)-1, r) })
		err := l.process(2*logBatch, l.raceOf(logBatch))
		p.Set(nil)
		return l, err
	}
	var creates []bool // of the requests
	l, err := run(in, s3.StartProxy(t, server), "whole", func(_ int64, r *http.Request) s3.Fault {
		creates = append(creates, s3.IsCreate(r))
		return s3.Pass
	})
	require.NoError(t, err)
	l.finish()
	type one struct {
		request int64
		fault   s3.Fault
	}
	var todo []one
	for i, create := range creates {
		for j, f := range bucketFaults {
			if sampled(len(todo)+i) && (create || i%len(bucketFaults) == j) {
				todo = append(todo, one{int64(i), f})
			}
		}
	}
	const proxies = 4
	t.Run("", func(t *testing.T) {
		for k := range proxies {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				p := s3.StartProxy(t, server)
				in := newSource(t) // a scrubber is for one goroutine
				for n := k; n < len(todo); n += proxies {
					x := todo[n]
					l, err := run(in, p, fmt.Sprint(n), func(i int64, r *http.Request) s3.Fault {
						if i == x.request {
							return fault(r, x.fault)
						}
						return s3.Pass
					})
					// What passes is waited for, what does not ends the process.
					switch x.fault {
					case s3.Denied, s3.Exists:
						if err != nil { // a removal that fails is left to the next sweep
							require.ErrorContains(t, err, "s3://"+server.Bucket+"/")
						}
					default:
						require.NoError(t, err, "request %d, fault %d", x.request, x.fault)
					}
					l.finish()
				}
			})
		}
	})
	t.Log(len(creates), "requests,", len(todo), "runs")
}

// Requests fail at random over a longer chain, one in eight, in every way.
func TestRequestsFailAtRandom(t *testing.T) {
	server, in := s3.Start(t), newSource(t)
	setAccount(t, server)
	p := s3.StartProxy(t, server)
	const commits = 8
	for seed := range uint64(2) {
		l := newLog(in, bucketAt(p.Server, fmt.Sprint("seed-", seed)), commits+1)
		var mu sync.Mutex
		draw, failed := rand.New(rand.NewPCG(seed, 0)), 0
		next := func() s3.Fault {
			mu.Lock()
			defer mu.Unlock()
			if draw.IntN(8) > 0 {
				return s3.Pass
			}
			failed++
			return bucketFaults[failed%len(bucketFaults)]
		}
		p.Set(func(r *http.Request) s3.Fault { return fault(r, next()) })
		died := 0
		for l.process(commits*logBatch, l.raceOf(int64(seed+1)*3*logBatch)) != nil {
			died++
			require.Less(t, died, 1000, "it makes no progress")
		}
		require.Greater(t, failed, 2*len(bucketFaults))
		p.Set(nil)
		l.finish()
		t.Log("died", died, "times of", failed, "faults")
	}
}

// 412 on a name that is free is no lost race: the files stay, and the error
// does not say that another writer committed.
func TestExistsThoughFree(t *testing.T) {
	server, in := s3.Start(t), newSource(t)
	setAccount(t, server)
	p := s3.StartProxy(t, server)
	l := newLog(in, bucketAt(p.Server, "a"), 2)
	s, err := Create(l.location)
	require.NoError(t, err)
	w := open(t, s, l.options)
	p.Set(func(r *http.Request) s3.Fault {
		if s3.IsCreate(r) {
			return s3.Exists
		}
		return s3.Pass
	})
	err = l.commit(w, l.fill(w))
	require.ErrorContains(t, err, "says that _commits/events/0/00000000000000000000.json is there when it is created, and that it is not")
	require.NotErrorIs(t, err, ErrCommitted)
	p.Set(nil)
	require.EqualValues(t, 5, clean(t, s).Orphans, "the intent and the files, for the commit may stand")
	l.finish()
}

// A store that does not answer, or not well, ends a commit with an error that
// says where, when patience is at its end: twice, for files that were written
// are to be removed.
func TestBucketDown(t *testing.T) {
	setPatience(t, 500*time.Millisecond, 300*time.Millisecond)
	server := s3.Start(t)
	setAccount(t, server)
	t.Run("", func(t *testing.T) {
		for name, rule := range map[string]s3.Rule{
			"errors":    func(*http.Request) s3.Fault { return s3.InternalError },
			"conflicts": func(*http.Request) s3.Fault { return s3.Conflict },
			"silence":   func(r *http.Request) s3.Fault { s3.Delay(r, 3*requestTime); return s3.InternalError },
			"cuts":      func(*http.Request) s3.Fault { return s3.LoseReply },
		} {
			for _, from := range []string{"_intents/", "_commits/"} {
				t.Run(name+" from "+from, func(t *testing.T) {
					t.Parallel()
					down(t, s3.StartProxy(t, server), name, from, rule)
				})
			}
		}
	})
}

func down(t *testing.T, p *s3.Proxy, name, from string, rule s3.Rule) {
	l := newLog(newSource(t), bucketAt(p.Server, name+" "+from), 2)
	s, err := Create(l.location)
	require.NoError(t, err)
	w := open(t, s, l.options)
	last := l.fill(w)
	var down atomic.Bool
	p.Set(func(r *http.Request) s3.Fault {
		if down.Load() || r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/"+from) {
			down.Store(true)
			return rule(r)
		}
		return s3.Pass
	})
	start := time.Now()
	err = l.commit(w, last)
	took := time.Since(start)
	p.Set(nil)
	require.ErrorContains(t, err, "s3://"+p.Bucket+"/"+name)
	require.ErrorContains(t, err, " "+from)
	require.NotErrorIs(t, err, ErrCommitted)
	require.GreaterOrEqual(t, took, patience)
	require.Less(t, took, 2*(patience+requestTime)+5*time.Second) // the machine may be busy
	l.finish()
}

// A process that dies before or after any request leaves what the next one
// carries on from.
func TestKillInBucket(t *testing.T) {
	server, in := s3.Start(t), newSource(t)
	setAccount(t, server)
	for n, died := 1, true; died; n++ {
		l := newLog(in, bucketAt(server, fmt.Sprint(n)), 2)
		points := 0
		setHook(t, func(failpoint.Point) error {
			if points++; points == n {
				panic(errKilled)
			}
			return nil
		})
		func() {
			defer func() {
				r := recover()
				if died = r != nil; died {
					require.Equal(t, errKilled, r)
				}
			}()
			require.NoError(t, l.process(logBatch, nil))
			require.Greater(t, points, 20)
		}()
		failpoint.Hook = nil
		l.finish()
	}
}

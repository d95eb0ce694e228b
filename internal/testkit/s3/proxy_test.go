package s3

import (
	"bytes"
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/require"
)

// firstCreate does f to the first create and passes all else.
func firstCreate(f Fault) Rule {
	var seen atomic.Bool
	return func(r *http.Request) Fault {
		if IsCreate(r) && seen.CompareAndSwap(false, true) {
			return f
		}
		return Pass
	}
}

// there reports whether the server has an object key.
func there(t *testing.T, s Server, key string) bool {
	t.Helper()
	_, err := client(s, 1).HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &s.Bucket, Key: &key})
	if code(err) == "NotFound" {
		return false
	}
	require.NoError(t, err)
	return true
}

func TestProxyPasses(t *testing.T) {
	s := Start(t)
	p := StartProxy(t, s)
	c := client(p.Server, 1)
	for _, key := range []string{"a", "a folder/b+c%20d", "день/=&?#.json"} {
		for _, size := range []int{0, 1, 5 << 20} { // above 2 MiB the client sends Expect: 100-continue
			body := bytes.Repeat([]byte("x"), size)
			_, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &p.Bucket, Key: &key, Body: bytes.NewReader(body)})
			require.NoError(t, err, key)
			require.Equal(t, body, get(t, c, p.Server, key))
			require.Equal(t, body, get(t, client(s, 1), s, key), "the same object by both ways")
		}
	}
	require.Equal(t, 18, p.Count(Pass))

	wrong := p.Server
	wrong.SecretKey = "another"
	err := create(t.Context(), client(wrong, 1), wrong, "b", nil)
	require.Equal(t, "SignatureDoesNotMatch", code(err), "the server checks signatures behind the proxy")
}

func TestProxyRace(t *testing.T) {
	p := StartProxy(t, Start(t))
	require.Zero(t, race(t, p.Server, "whole", 20, create))
	require.Zero(t, race(t, p.Server, "parts", 10, createInParts))
}

func TestProxyReplies(t *testing.T) {
	s := Start(t)
	p := StartProxy(t, s)
	for f, want := range map[Fault]string{
		Conflict: "ConditionalRequestConflict", Exists: "PreconditionFailed", Denied: "AccessDenied",
		InternalError: "InternalError", SlowDown: "SlowDown",
	} {
		t.Run(want, func(t *testing.T) {
			p.Set(firstCreate(f))
			body := bytes.Repeat([]byte("x"), 1<<20) // sent without waiting for 100 Continue
			require.Equal(t, want, code(create(t.Context(), client(p.Server, 1), p.Server, want, body)))
			require.False(t, there(t, s, want), "the server did not see it")
			require.NoError(t, create(t.Context(), client(p.Server, 1), p.Server, want, body), "the second passes")
			require.Equal(t, 1, p.Count(f))
			require.Equal(t, 1, p.Count(Pass))
		})
	}
}

// The server did it and the client cannot know: its second try finds its own
// object.
func TestProxyLosesReply(t *testing.T) {
	s := Start(t)
	p := StartProxy(t, s)
	p.Set(firstCreate(LoseReply))
	err := create(t.Context(), client(p.Server, 1), p.Server, "once", []byte("x"))
	require.Error(t, err)
	require.Empty(t, code(err), "no reply of S3's")
	require.True(t, there(t, s, "once"))

	p.Set(firstCreate(LoseReply))
	err = create(t.Context(), client(p.Server, 3), p.Server, "twice", []byte("x"))
	require.Equal(t, "PreconditionFailed", code(err), "the client's own object is in its way")
	require.Equal(t, 1, p.Count(LoseReply))
	require.Equal(t, 1, p.Count(Pass), "the second try")
	require.Equal(t, "x", string(get(t, client(s, 1), s, "twice")))
}

func TestProxyCutsRequest(t *testing.T) {
	s := Start(t)
	p := StartProxy(t, s)
	for _, size := range []int{2, 5 << 20} {
		p.Set(firstCreate(CutRequest))
		body := bytes.Repeat([]byte("x"), size)
		err := create(t.Context(), client(p.Server, 1), p.Server, "cut", body)
		require.Error(t, err)
		require.Empty(t, code(err))
		require.False(t, there(t, s, "cut"), "half a body is no object")
	}
	require.NoError(t, create(t.Context(), client(p.Server, 1), p.Server, "cut", nil))
}

func TestProxyCutsReply(t *testing.T) {
	s := Start(t)
	p := StartProxy(t, s)
	require.NoError(t, create(t.Context(), client(s, 1), s, "k", bytes.Repeat([]byte("x"), 100)))
	p.Set(func(*http.Request) Fault { return CutReply })
	key := "k"
	out, err := client(p.Server, 1).GetObject(t.Context(), &s3.GetObjectInput{Bucket: &p.Bucket, Key: &key})
	require.NoError(t, err, "the headers come")
	defer out.Body.Close()
	require.EqualValues(t, 100, *out.ContentLength)
	var got bytes.Buffer
	_, err = got.ReadFrom(out.Body)
	require.Error(t, err)
	require.Equal(t, 50, got.Len())
}

func TestProxyDelays(t *testing.T) {
	p := StartProxy(t, Start(t))
	p.Set(func(r *http.Request) Fault { return Delay(r, 50*time.Millisecond) })
	began := time.Now()
	require.NoError(t, create(t.Context(), client(p.Server, 1), p.Server, "k", nil))
	require.GreaterOrEqual(t, time.Since(began), 50*time.Millisecond)
	require.Equal(t, 1, p.Count(Delayed))

	arrived, left := make(chan struct{}), make(chan struct{})
	p.Set(func(r *http.Request) Fault {
		close(arrived)
		f := Delay(r, time.Hour)
		close(left)
		return f
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	require.ErrorIs(t, create(ctx, client(p.Server, 1), p.Server, "k2", nil), context.Canceled)
	<-left // the delay ends with the client
}

package s3

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	"github.com/stretchr/testify/require"
	"gocloud.dev/blob"
	"gocloud.dev/blob/s3blob"
	"gocloud.dev/gcerrors"
)

// open is a gocloud bucket whose client tries 3 times, the default.
func open(t *testing.T, s Server) *blob.Bucket {
	t.Helper()
	b, err := s3blob.OpenBucket(t.Context(), client(s, 3), s.Bucket, &s3blob.Options{
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported,
	})
	require.NoError(t, err)
	t.Cleanup(func() { b.Close() })
	return b
}

func createBlob(ctx context.Context, b *blob.Bucket, key string, body []byte) error {
	return b.WriteAll(ctx, key, body, &blob.WriterOptions{IfNotExist: true})
}

// What a store that commits through gocloud builds on, and what it must not.
// If a newer gocloud or SDK breaks one of these, look at the store.
func TestGocloud(t *testing.T) {
	s := Start(t)
	p := StartProxy(t, s)
	b := open(t, p.Server)
	for _, c := range []struct {
		fault  Fault
		always bool
		gc     gcerrors.ErrorCode
		code   string
		tries  int
		there  bool
	}{
		{Pass, true, gcerrors.OK, "", 1, true},
		{Exists, true, gcerrors.FailedPrecondition, "PreconditionFailed", 1, false},
		{Conflict, true, gcerrors.Unknown, "ConditionalRequestConflict", 1, false}, // no retry
		{Denied, true, gcerrors.PermissionDenied, "AccessDenied", 1, false},
		{InternalError, false, gcerrors.OK, "", 2, true},
		{InternalError, true, gcerrors.Unknown, "InternalError", 3, false},
		{SlowDown, true, gcerrors.Unknown, "SlowDown", 3, false},
		{CutRequest, true, gcerrors.Unknown, "", 3, false},
		{LoseReply, false, gcerrors.FailedPrecondition, "PreconditionFailed", 2, true}, // its own object
		{LoseReply, true, gcerrors.Unknown, "", 3, true},
	} {
		t.Run(fmt.Sprint(c.fault, c.always), func(t *testing.T) {
			key := t.Name()
			p.Set(firstCreate(c.fault))
			if c.always {
				p.Set(func(*http.Request) Fault { return c.fault })
			}
			err := createBlob(t.Context(), b, key, []byte("xx"))
			require.Equal(t, c.gc, gcerrors.Code(err), "%v", err)
			require.Equal(t, c.code, code(err))
			tries := p.Count(c.fault)
			if !c.always {
				tries += p.Count(Pass)
			}
			require.Equal(t, c.tries, tries)
			require.Equal(t, c.there, there(t, s, key))
		})
	}
}

// From 16 MiB on gocloud uploads in parts, whatever BufferSize says; a transfer
// manager with another threshold sends one PutObject.
func TestGocloudSizes(t *testing.T) {
	p := StartProxy(t, Start(t))
	b := open(t, p.Server)
	whole := func(as func(any) bool) error {
		var m *transfermanager.Client
		if as(&m) {
			*m = *transfermanager.New(client(p.Server, 3), func(o *transfermanager.Options) { o.MultipartUploadThreshold = 1 << 40 })
		}
		return nil
	}
	const parts = 16 << 20
	for _, c := range []struct {
		key      string
		size     int
		o        blob.WriterOptions
		requests int
	}{
		{"below", parts - 1, blob.WriterOptions{}, 1},
		{"parts", parts, blob.WriterOptions{}, 4}, // begin, two parts, complete
		{"buffered", parts, blob.WriterOptions{BufferSize: 2 * parts}, 3},
		{"whole", parts, blob.WriterOptions{BeforeWrite: whole}, 1},
	} {
		t.Run(c.key, func(t *testing.T) {
			p.Set(nil)
			body := bytes.Repeat([]byte("0123456789abcdef"), parts/16)[:c.size]
			c.o.IfNotExist = true
			require.NoError(t, b.WriteAll(t.Context(), c.key, body, &c.o))
			require.Equal(t, c.requests, p.Count(Pass))
			err := b.WriteAll(t.Context(), c.key, body, &c.o)
			require.Equal(t, gcerrors.FailedPrecondition, gcerrors.Code(err), "%v", err)
			got, err := b.ReadAll(t.Context(), c.key)
			require.NoError(t, err)
			require.True(t, bytes.Equal(body, got))
		})
	}
}

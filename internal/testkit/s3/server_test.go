package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/stretchr/testify/require"
)

// client is one that tries each request attempts times.
func client(s Server, attempts int) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint:     aws.String(s.Endpoint),
		Region:           s.Region,
		Credentials:      credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
		UsePathStyle:     true,
		RetryMaxAttempts: attempts,
		// What config.LoadDefaultConfig sets; New alone sends no checksums.
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported,
	})
}

func create(ctx context.Context, c *s3.Client, s Server, key string, body []byte) error {
	_, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: &s.Bucket, Key: &key, IfNoneMatch: aws.String("*"), Body: bytes.NewReader(body)})
	return err
}

// createInParts is create through an upload of one part.
func createInParts(ctx context.Context, c *s3.Client, s Server, key string, body []byte) error {
	u, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &s.Bucket, Key: &key, ChecksumAlgorithm: types.ChecksumAlgorithmCrc32})
	if err != nil {
		return err
	}
	p, err := c.UploadPart(ctx, &s3.UploadPartInput{Bucket: &s.Bucket, Key: &key, UploadId: u.UploadId, PartNumber: aws.Int32(1), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32, Body: bytes.NewReader(body)})
	if err != nil {
		return err
	}
	_, err = c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &s.Bucket, Key: &key, UploadId: u.UploadId, IfNoneMatch: aws.String("*"),
		MultipartUpload: &types.CompletedMultipartUpload{Parts: []types.CompletedPart{{PartNumber: aws.Int32(1), ETag: p.ETag, ChecksumCRC32: p.ChecksumCRC32}}},
	})
	return err
}

func get(t *testing.T, c *s3.Client, s Server, key string) []byte {
	t.Helper()
	out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.Bucket, Key: &key})
	require.NoError(t, err)
	defer out.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(out.Body)
	require.NoError(t, err)
	return b.Bytes()
}

// code is that of S3's error, "" if err is none.
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// race has 16 clients create each of keys keys below folder at once and returns
// for how many of them more than one won. One must win, every loser must be
// told PreconditionFailed, and a sole winner's bytes must lie there.
func race(t *testing.T, s Server, folder string, keys int, create func(context.Context, *s3.Client, Server, string, []byte) error) (twice int) {
	t.Helper()
	c := client(s, 1)
	for k := range keys {
		var won atomic.Int32
		var winner atomic.Value
		var wg sync.WaitGroup
		gate := make(chan struct{})
		key := fmt.Sprintf("%s/%d", folder, k)
		for i := range 16 {
			wg.Go(func() {
				<-gate
				body := fmt.Sprintf("client %d", i)
				err := create(t.Context(), c, s, key, []byte(body))
				if err == nil {
					won.Add(1)
					winner.Store(body)
				} else if code(err) != "PreconditionFailed" {
					t.Errorf("%s: %v", key, err)
				}
			})
		}
		close(gate)
		wg.Wait()
		require.NotZero(t, won.Load(), "nobody created %s", key)
		if won.Load() > 1 {
			twice++
			continue
		}
		require.Equal(t, winner.Load(), string(get(t, c, s, key)))
	}
	return twice
}

func TestOneCreateWins(t *testing.T) {
	s := Start(t)
	require.Zero(t, race(t, s, "whole", 200, create))
}

func TestOneCreateInPartsWins(t *testing.T) {
	s := Start(t)
	require.Zero(t, race(t, s, "parts", 50, createInParts))
}

func TestBrokenCreates(t *testing.T) {
	for _, c := range []Creates{Checked, Ignored} {
		t.Run(string(c), func(t *testing.T) {
			s := StartWith(t, c)
			require.Positive(t, race(t, s, "whole", 5, create), "no key has two winners")
			require.Positive(t, race(t, s, "parts", 5, createInParts))
			err := create(t.Context(), client(s, 1), s, "whole/0", []byte("later"))
			if c == Checked {
				require.Equal(t, "PreconditionFailed", code(err), "one after the other, the look-up is good enough")
			} else {
				require.NoError(t, err)
			}
		})
	}
}

// A refused body is read to its end, so that the client sees why.
func TestLargeCreateIsRefused(t *testing.T) {
	s := Start(t)
	body := make([]byte, 8<<20)
	require.NoError(t, create(t.Context(), client(s, 1), s, "k", body))
	for range 10 {
		require.Equal(t, "PreconditionFailed", code(create(t.Context(), client(s, 1), s, "k", body)))
	}
}

// A server ends with the process that started it, though that was killed.
func TestServerEndsWithItsProcess(t *testing.T) {
	if os.Getenv("WINNOW_S3_CHILD") != "" {
		s := Start(t)
		fmt.Println("endpoint", s.Endpoint)
		select {}
	}
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, "-test.run", "^TestServerEndsWithItsProcess$")
	cmd.Env = append(os.Environ(), "WINNOW_S3_CHILD=1", "TMPDIR="+t.TempDir()) // the killed one cleans nothing up
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var endpoint string
	_, err = fmt.Fscanf(out, "endpoint %s\n", &endpoint)
	require.NoError(t, err)
	conn, err := net.Dial("tcp", strings.TrimPrefix(endpoint, "http://"))
	require.NoError(t, err)
	defer conn.Close()
	_, err = fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: s3\r\n") // a request without its end keeps the connection open
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	_, err = io.ReadAll(conn)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the server still runs")
}

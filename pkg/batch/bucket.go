package batch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/s3blob" // s3:// URLs
	"gocloud.dev/gcerrors"

	"winnow/internal/failpoint"
)

// bucket is storage in an S3 bucket, or one of a compatible store. Create if
// absent is a PUT with If-None-Match: *, which not every such store keeps to:
// Store.Probe tells.
type bucket struct {
	blobs    *blob.Bucket
	location string
}

// How long one request may take, and how long one that fails for a reason that
// passes is repeated. The client's own few retries come within each request. A
// commit to a store that is down ends after at most twice the sum: the second
// time is for its read of what stands, or for removing what it wrote. Tests
// make both short.
var (
	requestTime = time.Minute
	patience    = 2 * time.Minute
)

// openBucket opens s3://BUCKET/PREFIX. Query parameters are those of
// gocloud.dev/blob/s3blob: region, endpoint, use_path_style and others.
// Credentials come from where the AWS tools look for them, never from the URL.
func openBucket(location string) (*bucket, error) {
	u, err := url.Parse(location)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, errors.New("a bucket is named as s3://BUCKET/PREFIX, with ?region=…&endpoint=… where needed")
	}
	q := u.Query()
	if p := strings.Trim(path.Clean("/"+u.Path), "/"); p != "" {
		q.Set("prefix", p+"/")
	}
	b, err := blob.OpenBucket(context.Background(), bucketScheme+u.Host+"?"+q.Encode())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", bucketScheme+u.Host, err)
	}
	return &bucket{b, bucketScheme + u.Host + u.Path}, nil
}

func (b *bucket) String() string { return b.location }

// try makes a request, and makes it again while it fails for a reason that
// passes.
func (b *bucket) try(ctx context.Context, op, name string, request func(context.Context) error) error {
	start := time.Now()
	for n := 0; ; n++ {
		err := failpoint.Around(op, name, func() error {
			ctx, cancel := context.WithTimeout(ctx, requestTime)
			defer cancel()
			return request(ctx)
		})
		switch {
		case err == nil || ctx.Err() != nil:
		case apiCode(err) == "NoSuchBucket":
			err = errors.New("there is no such bucket")
		case gcerrors.Code(err) == gcerrors.NotFound:
			err = fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		case passes(err) && time.Since(start) < patience:
			d := 100 * time.Millisecond << min(n, 6)
			t := time.NewTimer(d/2 + rand.N(d/2))
			select {
			case <-t.C:
				continue
			case <-ctx.Done():
				t.Stop()
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%s %s in %s: %w", op, name, b.location, err)
		}
		return err
	}
}

// apiCode returns the word that the store's answer gives its error, if any.
func apiCode(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// passes reports whether a request that failed with err may succeed later. 409
// is S3's answer to a conditional request that meets another one on the same
// key: neither has happened yet.
func passes(err error) bool {
	if errors.Is(err, fs.ErrExist) || errors.Is(err, context.Canceled) {
		return false
	}
	switch apiCode(err) {
	case "RequestTimeout", "RequestTimeTooSkewed", "ExpiredToken":
		return true // of the body, of the clock, of credentials that are renewed
	}
	var res *smithyhttp.ResponseError
	if errors.As(err, &res) {
		switch code := res.HTTPStatusCode(); code {
		case http.StatusConflict, http.StatusRequestTimeout, http.StatusTooManyRequests:
			return true
		default:
			return code >= 500 || code < 400
		}
	}
	// Of the connection; the last two while a body was read, which the client
	// does not repeat.
	var oe *smithy.OperationError
	var ne net.Error
	return errors.As(err, &oe) || errors.As(err, &ne) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF)
}

func (b *bucket) read(ctx context.Context, name string) (data []byte, err error) {
	err = b.try(ctx, "get", name, func(ctx context.Context) error {
		data, err = b.blobs.ReadAll(ctx, name)
		return err
	})
	return data, err
}

func (b *bucket) write(ctx context.Context, name string, data []byte) error {
	return b.try(ctx, "put", name, func(ctx context.Context) error {
		return b.blobs.WriteAll(ctx, name, data, nil)
	})
}

func (b *bucket) create(ctx context.Context, name, _ string, data []byte) error {
	return b.try(ctx, "create", name, func(ctx context.Context) error {
		err := b.blobs.WriteAll(ctx, name, data, &blob.WriterOptions{IfNotExist: true})
		if apiCode(err) == "PreconditionFailed" {
			return fs.ErrExist
		}
		return err
	})
}

// settle has nothing to do: a request that is answered is durable.
func (b *bucket) settle(context.Context, ...string) error { return nil }

func (b *bucket) remove(ctx context.Context, name string) error {
	err := b.try(ctx, "delete", name, func(ctx context.Context) error { return b.blobs.Delete(ctx, name) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (b *bucket) list(ctx context.Context, dir string, deep bool, yield func(entry) error) error {
	o := blob.ListOptions{Prefix: dir + "/", Delimiter: "/"}
	if dir == "." {
		o.Prefix = ""
	}
	if deep {
		o.Delimiter = ""
	}
	const page = 1000 // the most that S3 returns at once
	for token := blob.FirstPageToken; token != nil; {
		var objects []*blob.ListObject
		next := token
		err := b.try(ctx, "list", dir, func(ctx context.Context) (err error) {
			objects, next, err = b.blobs.ListPage(ctx, token, page, &o)
			return err
		})
		if err != nil {
			return err
		}
		for _, x := range objects {
			if err := yield(entry{name: strings.TrimSuffix(x.Key, "/"), dir: x.IsDir, modified: x.ModTime}); err != nil {
				return err
			}
		}
		token = next
		if len(token) == 0 {
			token = nil
		}
	}
	return nil
}

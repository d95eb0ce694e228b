// Command server is the S3 server of the tests: versitygw over two folders,
// with one account and one bucket. Its module is its own, so that what it
// needs stays out of the project's.
//
// It says its address, HOST:PORT, in one line on standard output once it
// answers, and ends when standard input does: with the process that started it,
// however that goes. The account is AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"github.com/versity/versitygw/s3api"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

var (
	dir     = flag.String("dir", "", "folder for the objects and for what is known of them")
	bucket  = flag.String("bucket", "", "name of the bucket")
	region  = flag.String("region", "", "region that clients sign for")
	creates = flag.String("creates", "atomic", `what If-None-Match is worth: "atomic"; "checked": looked up before the write; "ignored"`)

	account = auth.Account{Access: os.Getenv("AWS_ACCESS_KEY_ID"), Secret: os.Getenv("AWS_SECRET_ACCESS_KEY")}
)

func main() {
	flag.Parse()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "s3 server:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	be, err := store(ctx)
	if err != nil {
		return err
	}
	// The port is free when it is asked for; another process may take it before
	// versitygw, which only takes an address, does.
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		addr := l.Addr().String()
		l.Close()
		err = serve(ctx, be, addr)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
	}
}

// store returns the back end that the flags ask for, with its bucket.
func store(ctx context.Context) (backend.Backend, error) {
	objects, about := filepath.Join(*dir, "objects"), filepath.Join(*dir, "about")
	for _, d := range []string{objects, about} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	// Files beside the objects, not extended attributes: not every file system
	// of a test machine has those.
	m, err := meta.NewSideCar(about)
	if err != nil {
		return nil, err
	}
	files, err := posix.New(objects, m, posix.PosixOpts{SideCarDir: about})
	if err != nil {
		return nil, err
	}
	acl, err := json.Marshal(auth.ACL{Owner: account.Access})
	if err != nil {
		return nil, err
	}
	if err := files.CreateBucket(ctx, &s3.CreateBucketInput{
		Bucket:                    bucket,
		CreateBucketConfiguration: &types.CreateBucketConfiguration{},
		ObjectOwnership:           types.ObjectOwnershipBucketOwnerEnforced,
	}, acl); err != nil {
		return nil, err
	}
	switch *creates {
	case "atomic":
		return patient{files}, nil
	case "checked", "ignored":
		return patient{broken{files}}, nil
	}
	return nil, fmt.Errorf("-creates %q", *creates)
}

func serve(ctx context.Context, be backend.Backend, addr string) error {
	return embedgw.RunVersityGW(ctx, be, &embedgw.Config{
		RootUserAccess:    account.Access,
		RootUserSecret:    account.Secret,
		Region:            *region,
		Ports:             []string{addr},
		KeepAlive:         true,
		MaxConnections:    1000,
		MaxRequests:       1000,
		MultipartMaxParts: 10000,
		Quiet:             true,
		S3Options:         []s3api.Option{s3api.WithOnListen(func() { fmt.Println(addr) })},
	})
}

// patient reads a body to its end before it refuses it. versitygw stops after
// 256 KiB and closes: a client that still sends gets a reset and not the 412.
type patient struct{ backend.Backend }

func (b patient) PutObject(ctx context.Context, in s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	out, err := b.Backend.PutObject(ctx, in)
	if err != nil && in.Body != nil {
		_, _ = io.Copy(io.Discard, in.Body)
	}
	return out, err
}

// gap is between look-up and write. Without it one key in five has two winners
// among 16 clients; with it, every key whose clients come within it.
const gap = 50 * time.Millisecond

// broken does not create atomically.
type broken struct{ backend.Backend }

// absent is what is left of the condition: a look-up, before the write and
// without a lock, or nothing. Two clients that are both told "absent" both win.
func (b broken) absent(ctx context.Context, bucket, key, condition *string) error {
	if condition == nil || *creates == "ignored" {
		return nil
	}
	if _, err := b.HeadObject(ctx, &s3.HeadObjectInput{Bucket: bucket, Key: key}); err == nil {
		return s3err.GetPreconditionFailedErr(s3err.ConditionIfNoneMatch)
	}
	time.Sleep(gap)
	return nil
}

func (b broken) PutObject(ctx context.Context, in s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	if err := b.absent(ctx, in.Bucket, in.Key, in.IfNoneMatch); err != nil {
		return s3response.PutObjectOutput{}, err
	}
	in.IfNoneMatch = nil
	return b.Backend.PutObject(ctx, in)
}

func (b broken) CompleteMultipartUpload(ctx context.Context, in *s3.CompleteMultipartUploadInput) (s3response.CompleteMultipartUploadResult, string, error) {
	if err := b.absent(ctx, in.Bucket, in.Key, in.IfNoneMatch); err != nil {
		return s3response.CompleteMultipartUploadResult{}, "", err
	}
	in.IfNoneMatch = nil
	return b.Backend.CompleteMultipartUpload(ctx, in)
}

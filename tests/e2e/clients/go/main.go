// A Workload API client that we did not write the library of: go-spiffe.
//
//	client fetch      print the X.509 context as one JSON object
//	client watch N    print a JSON object per update until N were seen
//	client probe      connect anew all the time; print a JSON object when that was not answered at once
//
// The socket is the one of SPIFFE_ENDPOINT_SOCKET. Each leaf is verified against the bundle of its trust domain.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

type identity struct {
	ID       string    `json:"id"`
	Serial   string    `json:"serial"`
	Chain    int       `json:"chain"`
	NotAfter time.Time `json:"notAfter"`
	// Hex SHA-256 of each authority of the trust domain.
	Authorities []string `json:"authorities"`
}

type watcher struct {
	ctx  context.Context
	left chan struct{}
}

func report(c *workloadapi.X509Context) error {
	svid := c.DefaultSVID()
	id, _, err := x509svid.Verify(svid.Certificates, c.Bundles)
	if err != nil {
		return fmt.Errorf("the SVID does not verify against the bundle it came with: %w", err)
	}
	leaf := svid.Certificates[0]
	out := identity{ID: id.String(), Serial: leaf.SerialNumber.Text(16), Chain: len(svid.Certificates), NotAfter: leaf.NotAfter}
	bundle, err := c.Bundles.GetX509BundleForTrustDomain(id.TrustDomain())
	if err != nil {
		return err
	}
	for _, a := range bundle.X509Authorities() {
		sum := sha256.Sum256(a.Raw)
		out.Authorities = append(out.Authorities, hex.EncodeToString(sum[:]))
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	if err := report(c); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	w.left <- struct{}{}
}

func (w *watcher) OnX509ContextWatchError(err error) {
	// The end of the watch is an error to the library, too.
	if w.ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "watch:", err)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 1 && args[0] == "fetch" {
		c, err := workloadapi.FetchX509Context(ctx)
		if err != nil {
			return err
		}
		return report(c)
	}
	if len(args) == 2 && args[0] == "watch" {
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		w := &watcher{ctx: ctx, left: make(chan struct{})}
		failed := make(chan error, 1)
		go func() { failed <- workloadapi.WatchX509Context(ctx, w) }()
		for ; n > 0; n-- {
			select {
			case <-w.left:
			case err := <-failed:
				return err
			}
		}
		return nil
	}
	if len(args) == 1 && args[0] == "probe" {
		return probe(ctx)
	}
	return fmt.Errorf("usage: client fetch | client watch N | client probe")
}

// After each answer the next connection is tried 20 ms later, so a gap is at most that much longer than what is printed.
func probe(ctx context.Context) error {
	type line struct {
		Gap      float64   `json:"gap"` // seconds from the first try to the answer
		Failures int       `json:"failures"`
		Error    string    `json:"error"`
		Until    time.Time `json:"until"`
	}
	for first := true; ctx.Err() == nil; first = false {
		l, begun := line{}, time.Now()
		for ctx.Err() == nil {
			try, cancel := context.WithTimeout(ctx, 10*time.Second)
			_, err := workloadapi.FetchX509Context(try)
			cancel()
			if err == nil {
				break
			}
			l.Failures, l.Error = l.Failures+1, err.Error()
			time.Sleep(5 * time.Millisecond)
		}
		l.Gap, l.Until = time.Since(begun).Seconds(), time.Now()
		// The first identity of a pod takes its time.
		if !first && ctx.Err() == nil && l.Gap > 0.1 {
			if err := json.NewEncoder(os.Stdout).Encode(l); err != nil {
				return err
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

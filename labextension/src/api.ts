/** Typed requests to the server extension: the only caller of ServerConnection. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import type { ICoded, IWireRental } from './tokens';

/** The server's answer when something cannot be done: a code and facts, with an English message as the last resort. */
export class ApiError extends Error implements ICoded {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly facts: Record<string, string>,
    message: string
  ) {
    super(message);
  }
}

export class RentalsApi {
  constructor(private readonly settings: ServerConnection.ISettings) {}

  async list(): Promise<IWireRental[]> {
    const reply = await this.request<{ rentals: IWireRental[] }>('GET', 'rentals');
    return reply.rentals;
  }

  settle(id: string): Promise<IWireRental> {
    return this.request('POST', 'rentals', id, 'settle');
  }

  private async request<T>(method: string, ...path: string[]): Promise<T> {
    const url = URLExt.join(this.settings.baseUrl, 'jupyter-depin', 'api', ...path);
    const init: RequestInit = { method, cache: 'no-store' };
    let response: Response;
    try {
      response = await ServerConnection.makeRequest(url, init, this.settings);
    } catch (error) {
      throw new ApiError(0, 'ServerUnreachable', {}, String(error));
    }
    const body = (await response.json().catch(() => ({}))) as Record<string, unknown>;
    if (!response.ok) {
      throw new ApiError(
        response.status,
        String(body.code ?? 'depin'),
        (body.facts ?? {}) as Record<string, string>,
        String(body.message ?? response.statusText)
      );
    }
    return body as T;
  }
}
